//! The coordinator: sessions of nodes, replicated state, cluster /v1
