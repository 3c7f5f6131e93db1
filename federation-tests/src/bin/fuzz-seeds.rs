//! Writes the inputs that fuzzing starts from: `fuzz-seeds FOLDER` fills `FOLDER/TARGET/`.

use std::fs;
use std::path::PathBuf;

use federation_tests::parsers::seeds::{Failure, seeds};

fn main() -> Result<(), Failure> {
    let folder = std::env::args_os().nth(1).ok_or("the folder to fill is missing")?;
    let folder = PathBuf::from(folder);
    for (number, (target, input)) in seeds()?.into_iter().enumerate() {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("seed-{number}")), input)?;
    }
    Ok(())
}
