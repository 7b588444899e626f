//! QUIC with mutual TLS between coordinators and nodes
