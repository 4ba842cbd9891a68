//! XML that we read back from libvirt (others may have edited it): never a panic, whatever it says.
#![no_main]

use libfuzzer_sys::fuzz_target;

const WANTED: &str = include_str!("../../crates/agent/src/domain/testdata/golden/kvm-devices.stored.xml");

fuzz_target!(|data: &[u8]| {
    let Ok(xml) = std::str::from_utf8(data) else { return };
    let _ = vmkeep_agent::probe::read(xml, WANTED);
});
