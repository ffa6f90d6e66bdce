"""How a model's answer is read, and its frozen lower layers computed once."""
