//! Forming a cluster and keeping it whole: certificates, etcd, members.

pub mod pki;
