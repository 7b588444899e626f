//! libFuzzer around the targets; POMONA_FUZZ_TARGET says which.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<String> =
    LazyLock::new(|| std::env::var("POMONA_FUZZ_TARGET").expect("POMONA_FUZZ_TARGET names a target"));

fuzz_target!(|data: &[u8]| pomona_fuzz::run(&TARGET, data));
