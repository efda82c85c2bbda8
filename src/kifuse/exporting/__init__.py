"""Exports what was learned, for use without kifuse: adapter or merged model, tokenizer and model card."""
