"""Where labelled customer turns come from."""
