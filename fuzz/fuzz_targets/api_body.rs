//! JSON bodies of the API: never a panic; what is accepted survives its own JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmkeep_api::body;
use vmkeep_types::manifest;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    if let Ok(wish) = manifest::from_json(value.clone()) {
        assert_eq!(manifest::from_json(wish.to_json()).expect("what was accepted"), wish);
    }
    let _ = manifest::vm_from_json(value.clone());
    let _ = manifest::network_from_json(value.clone());
    let _ = manifest::image_from_json(value.clone());
    let _ = manifest::body_from_json::<body::ApplyRequest>(value.clone());
    let _ = manifest::body_from_json::<body::ActionRequest>(value.clone());
    let _ = manifest::body_from_json::<body::AdoptRequest>(value.clone());
    let _ = manifest::body_from_json::<body::ExecRequest>(value.clone());
    let _ = manifest::body_from_json::<body::SendKeyRequest>(value.clone());
    let _ = manifest::body_from_json::<body::TokenCreate>(value.clone());
    let _ = manifest::body_from_json::<body::VolumeCreate>(value);
});
