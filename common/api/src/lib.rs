//! The OpenAI-compatible surface over a Backend trait
