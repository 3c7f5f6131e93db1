//! How the demo looks on a terminal.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::Instant;

/// Shown where nobody plays a role.
pub(super) const NOBODY: &str = "–";

/// Tells what happens.
pub(super) struct Stage {
    colours: bool,
    steps: Cell<u32>,
    begun: Instant,
}

impl Stage {
    pub(super) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours, steps: Cell::new(0), begun: Instant::now() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn title(&self, title: &str, picture: &str) {
        println!("\n{}\n\n    {picture}", self.paint("1", title));
    }

    pub(super) fn step(&self, text: &str) {
        self.steps.set(self.steps.get() + 1);
        let at = format!("{:5.1} s", self.begun.elapsed().as_secs_f64());
        let number = self.paint("1;36", &format!("{}.", self.steps.get()));
        println!("\n{} {number} {}", self.paint("2", &at), self.paint("1", text));
    }

    /// Who plays which role: Controller, Intermediary, Source, Destination.
    pub(super) fn roles(&self, roles: [&str; 4]) {
        let names = ["Controller", "Intermediary", "Source", "Destination"];
        let played = names.iter().zip(roles).filter(|(_, site)| *site != NOBODY);
        let told: Vec<String> = played.map(|(role, site)| format!("{role} {site}")).collect();
        self.say(&told.join(" · "));
    }

    pub(super) fn command(&self, site: &str, command: &[&str]) {
        let words: Vec<String> = command
            .iter()
            .map(|word| if word.contains(' ') { format!("\"{word}\"") } else { (*word).to_owned() })
            .collect();
        let line = format!("{site}$ sojourn {}", words.join(" "));
        println!("           {}", self.paint("33", &line));
    }

    pub(super) fn say(&self, text: &str) {
        println!("           {text}");
    }

    pub(super) fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("             {}", self.paint("2", line));
        }
    }

    pub(super) fn console(&self, line: &str) {
        println!("           {} {}", self.paint("2", "console:"), self.paint("32", line.trim()));
    }
}
