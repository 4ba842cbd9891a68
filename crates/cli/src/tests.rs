//! Tests of the grammar and of everything that is made from it.

mod docs;
mod reference;

use clap::CommandFactory;

use crate::cli::Cli;

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}
