//! One suite of behaviour for everything that calls itself a hypervisor: run against the fake, and against libvirt and QEMU in a
//! namespace host (`tests/lab/nshost`). The real tests need root and `scripts/packages.sh test`, and fail without them unless
//! VMKEEP_SKIP_LAB=1 says that they are left out on purpose.

mod fake;
mod real;
mod stand;
mod suite;
