"""One object that answers: a trained posterior with its model, tokenizer, prompt and way of predicting."""
