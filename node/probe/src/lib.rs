//! What a machine can tell about itself
