//! A figure beside what it should be.

use std::fmt;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(least) => figure >= least,
            Self::AtMost(most) => figure <= most,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

/// Says a figure, its aim, and whether it is met.
pub(crate) fn report(what: &str, figure: f64, aim: Aim) {
    let verdict = if aim.is_met(figure) { "met" } else { "NOT MET" };
    let digits = if figure < 100.0 { 2 } else { 0 };
    println!("    {what}: {figure:.digits$}, aim {aim}: {verdict}");
}
