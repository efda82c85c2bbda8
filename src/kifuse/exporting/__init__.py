"""What was learned, as others load it: an adapter or a merged model, with its tokenizer and a model card."""
