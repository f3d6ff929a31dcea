"""Business rules: facts about a request become a decision, which is carried out elsewhere."""
