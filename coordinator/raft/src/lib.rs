//! Replicated state: openraft over redb
