//! Tokenizer, chat template and incremental decoding
