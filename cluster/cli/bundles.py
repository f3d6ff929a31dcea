"""The verbs that take an adapter out of a cluster and bring one in."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from contextlib import redirect_stdout
from pathlib import Path

from cluster.cli.session import Verbs, client, named_tenant, named_version, say
from cluster.types import AdapterVersion, checked_name

_ADOPT = Path(__file__).resolve().parents[2] / "configs" / "train" / "adopt.yaml"
_ADOPT_S = 3600.0
_OWN = "ERROR train_jobs: "


def add_bundles(verbs: Verbs) -> list[argparse.ArgumentParser]:
    """`export` and `import`."""
    export = verbs.add_parser(
        "export", help="write a version as a signed bundle that runs anywhere"
    )
    export.add_argument("version", help="name@number")
    export.add_argument("--out", type=Path, required=True, help="folder of the bundle; must be new")
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the merged weights; float32 says exactly what base and adapter say",
    )
    export.set_defaults(run=_export)
    bring = verbs.add_parser("import", help="make a bundle, or anyone's PEFT folder, a candidate")
    bring.add_argument("source", type=Path)
    bring.add_argument("--tenant", required=True, help="whose it is from now on")
    bring.add_argument("--name", help="what it is called here; default: as in the bundle")
    bring.add_argument("--heldout", type=Path, help="JSON lines of turns to evaluate it on")
    bring.add_argument(
        "--trust", action="append", default=[], metavar="SHA256:...", help="who may have signed it"
    )
    bring.set_defaults(run=_import)
    return [export, bring]


def _signing_key(options: argparse.Namespace) -> Path:
    path: Path = options.workdir.resolve() / "state" / "signing-key.pem"
    return path


def _export(options: argparse.Namespace) -> int:
    from cluster.bundle import signing
    from cluster.bundle.contents import BundleManifest
    from cluster.bundle.export import Source, export
    from cluster.errors import ConflictError
    from cluster.storage import read_json

    version, out = named_version(options.version), options.out.resolve()
    if out.exists():
        raise ConflictError(f"{out} is already there: nothing is written over")
    control = client(options)
    record = control.do(control.adapters.version(version))
    base = control.do(control.adapters.base_model(record.manifest.base_digest))
    key = signing.own_key(_signing_key(options))
    fingerprint = signing.fingerprint(signing.public_pem(key))
    source = Source(record, base, control.do(control.adapters.card(version, leaving=True)))
    # Before it is written: a crash leaves an entry for what did not come to pass, not the reverse.
    control.do(control.adapters.record_export(version, fingerprint, control.name))
    # What the libraries print on standard output is no part of the answer.
    with redirect_stdout(sys.stderr):
        export(source, out, key, options.dtype, lambda line: print(f"  {line}", file=sys.stderr))
    manifest = BundleManifest.model_validate(read_json(out / "bundle.json"))
    found = {"bundle": str(out), "signed_by": fingerprint, **manifest.model_dump()}
    lines = [
        f"{version} is in {out}, signed by {fingerprint}",
        f"merged/ is {manifest.proof_difference:.5f} nats a token from its trainer; "
        "load it with transformers or vLLM as it stands",
    ]
    return say(options, found, lines)


def _import(options: argparse.Namespace) -> int:
    from cluster.bundle import signing
    from cluster.control import jobs
    from cluster.errors import UserError
    from cluster.launch import local as runtime

    source, tenant = options.source.resolve(), named_tenant(options.tenant)
    if options.heldout and not options.heldout.is_file():
        raise UserError(f"{options.heldout} is not a file of turns")  # nor a pipe, which may hang
    try:
        name = checked_name(options.name or _name_of(source))
    except ValueError as error:
        raise UserError(f"{error}; choose one with --name") from error
    control = client(options)
    version = control.do(control.adapters.next_version(name))
    base, live = control.do(control.adapters.base_model()), control.do(control.adapters.live(name))
    if live is not None and not options.heldout:
        # Its own evaluation compares it with nothing that is here.
        raise UserError(
            f"{live.id} is live, and what is to replace it is compared with it: give turns to "
            "evaluate both on with --heldout FILE, or another name with --name"
        )
    own = signing.fingerprint(signing.public_pem(signing.own_key(_signing_key(options))))
    run_id = f"import-{name}-{version}-{uuid.uuid4().hex[:6]}"
    workdir = options.workdir.resolve()
    settings: dict[str, object] = {
        "source": str(source),
        "adapter": name,
        "tenant": tenant,
        "version": version,
        "run_id": run_id,
        "base_model.path": base.path,
        "out": str(workdir / "adapters"),
        "storage": str(workdir / "runs"),
        "trusted": [own, *options.trust],
    }
    if options.heldout:
        settings["heldout"] = str(options.heldout.resolve())
        if live is not None:
            settings |= {"previous": live.path, "previous_label": str(live.id)}
    arguments = ["--config", str(_ADOPT)]
    for key, value in settings.items():
        # Quoted: a name such as `no`, or a path with a colon, is a text all the same.
        arguments += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    cluster = runtime.require_cluster(workdir)
    job = jobs.submit(cluster.dashboard, run_id, "train_jobs.adopt", arguments)
    print(f"  ray job {run_id}", file=sys.stderr)
    try:
        job.wait(
            _ADOPT_S, jobs.own_lines("train_jobs", lambda line: print(f"  {line}", file=sys.stderr))
        )
    except jobs.JobFailed as error:
        # Its last own words say what to mend; Ray's account of it is for who looks further.
        said = [line.partition(_OWN)[2] for line in str(error).splitlines() if _OWN in line]
        if not said:
            raise
        raise UserError(f"{said[-1]} (ray job {run_id})") from error
    record = control.do(control.adapters.version(AdapterVersion(name, version)))
    evaluation = record.manifest.evaluation
    found = {
        "version": str(record.id),
        "state": record.state,
        "evaluation": evaluation.model_dump(),
    }
    headline = evaluation.headline
    line = (
        f"{record.id} is a candidate; {evaluation.primary} {headline.value:.3f} on "
        f"{headline.rows} rows. Next: headrace adapters gate {record.id}"
    )
    return say(options, found, [line])


def _name_of(source: Path) -> str:
    """The name that a bundle gives its adapter; nothing else of it is believed here."""
    from cluster.bundle.contents import MANIFEST
    from cluster.errors import UserError
    from cluster.storage import read_json

    if not (source / MANIFEST).is_file():
        raise UserError(f"{source} is not a bundle of Headrace's: say what to call it with --name")
    stated = read_json(source / MANIFEST, limit=1 << 20)
    version = stated.get("version") if isinstance(stated, dict) else None
    return str(version).partition("@")[0]
