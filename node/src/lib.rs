//! The node agent: engine supervisor, reporter, store, local endpoint
