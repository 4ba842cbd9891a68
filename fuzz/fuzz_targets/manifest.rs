//! Manifest text: never a panic, never long; what is accepted is written and read back to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmkeep_types::manifest;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match manifest::parse("fuzz.yaml", text) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(documents) => {
            for document in documents {
                let wish = document.manifest.normalized();
                for yaml in [manifest::to_yaml_minimal(&wish), manifest::to_yaml_full(&wish)] {
                    let again = manifest::parse("again.yaml", &yaml).expect("what was written can be read");
                    assert_eq!(again[0].manifest.clone().normalized(), wish, "{yaml}");
                }
            }
        }
    }
});
