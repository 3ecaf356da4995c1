"""Networks: images, state and words to tokens, and a Transformer over them."""
