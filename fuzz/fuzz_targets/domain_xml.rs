//! Domain XML that we read back from libvirt (others may have edited it): never a panic, whatever it says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(xml) = std::str::from_utf8(data) else { return };
    let _ = vmkeep_agent::domain::adopt(xml);
    let _ = vmkeep_agent::domain::parse_metadata(xml);
});
