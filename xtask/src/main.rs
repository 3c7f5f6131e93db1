//! The scripts of the project.

mod guest_image;

use std::path::PathBuf;

use clap::Parser;

/// The scripts of the project.
#[derive(Parser)]
enum Task {
    /// Builds the bootable test guest from Debian packages, if it is not there already.
    GuestImage {
        /// Where to write the raw disk image.
        #[arg(long, default_value = "target/guest/disk.raw")]
        output: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::GuestImage { output } => guest_image::build(&output),
    }
}
