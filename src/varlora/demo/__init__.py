"""The embedded default: a small world in words, a task in it, and a Llama pre-trained on the rest of it.

world      who likes what: facts and questions as text
tokenizer  one token a word
pretrain   makes the weights in `model/`
data       the fine-tuning task as JSONL, and where the model and the plan are
plan.yaml  what `varlora demo` compares on it

And the second demo, with a real model and real rows:

smollm2.yaml  what `varlora demo --model smollm2` compares
banking       its rows, with their licence
"""
