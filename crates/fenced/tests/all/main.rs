//! The real program, beside a watchdog that only writes down what it would have done.

mod cgroups;
mod guard;
mod lab;
