//! Images built and imported for real: apt, mmdebstrap, qemu-img and guests under QEMU.

mod boot;
mod build;
mod import;
mod server;
mod stand;
