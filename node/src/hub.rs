//! Pulls models from a hub.
