//! JSON values.
