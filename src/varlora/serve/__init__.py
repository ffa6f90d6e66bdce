"""A server of confidence: classes with their probabilities, texts with their votes, over HTTP.

settings                what a server is told
load                    folders, read into models that share their base
app, middleware         endpoints, the page, who may ask and how much
classify, openai_*      the endpoints; request_body: what they share
waiting, worker         from a request to the thread that owns a base model, and back
row_batcher, text_batcher   what that thread does: batches of rows; texts, a token at a time
server                  the process: signals and a graceful end

Needs the extra `serve` (fastapi, uvicorn, prometheus-client), which is imported when a server is made.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
