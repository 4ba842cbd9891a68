//! Images: imported from files and URLs, built from Debian packages, or taken from a VM's disk.
//!
//! ```text
//!  file, upload, URL ──► detect format by content ──► refuse what points elsewhere ──► check ──► convert ──► pool
//! ```
//! Nothing of a foreign image is trusted: its format is detected from its first bytes, and a backing file, an external data
//! file or a descriptor that names other files is refused before QEMU opens anything. A failed import leaves no image.
//! What the finished disk shows of itself (`inside`) becomes the image's facts.

mod bring;
mod build;
mod detect;
mod download;
mod ext4;
mod import;
mod inside;
mod ova;
mod qcow2;
mod reach;

pub use bring::{Peers, bring, broke, digest};
pub use build::{BUILD_TOOLS, build};
pub use download::{Remote, fetch};
pub use import::{VolumeSource, from_volume, import_file};
pub use reach::Reach;
