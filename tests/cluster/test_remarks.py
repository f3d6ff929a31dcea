from cluster.records.keys import KeyChange, KeyRequest
from cluster.records.remarks import remark


def test_what_people_remark_is_kept_masked() -> None:
    assert remark("asked by ann@example.com\u200b, 415-555-0132") == "asked by [EMAIL_1], [PHONE_1]"
    assert KeyRequest(tenant="acme", alias="key of ann@example.com").alias == "key of [EMAIL_1]"
    assert KeyChange(alias="415-555-0132").alias == "[PHONE_1]"
    assert KeyChange(alias=None).alias is None
    assert len(KeyRequest(tenant="acme", alias="1.1.1.1 " * 7).alias) <= 63
