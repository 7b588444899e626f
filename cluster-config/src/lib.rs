//! TOML and environment into validated configuration
