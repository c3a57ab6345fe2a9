//! Questions to the one who sits before the program. Answers are read from standard input, from a script too; of what is
//! secret nothing is shown while it is typed.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// The line that is typed after the question; an end of the input is an empty answer.
pub fn line(question: &str) -> Result<String, Failure> {
    say(question)?;
    read_line()
}

/// A passphrase. Ctrl-C ends the program with the terminal as it was.
pub fn secret(question: &str) -> Result<String, Failure> {
    say(question)?;
    let input = io::stdin();
    if !input.is_terminal() {
        return read_line();
    }
    let failed = |e: rustix::io::Errno| Failure::because("cannot silence the terminal", &io::Error::from(e));
    let before = tcgetattr(&input).map_err(failed)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    // The end of the line is shown, and so is that of Ctrl-C.
    silent.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&input, OptionalActions::Flush, &silent).map_err(failed)?;
    let answer = read_line();
    tcsetattr(&input, OptionalActions::Now, &before).map_err(failed)?;
    answer
}

/// A new passphrase, typed twice the same; three tries.
pub fn new_secret(question: &str) -> Result<String, Failure> {
    for _ in 0..3 {
        let first = secret(question)?;
        if first.is_empty() || first == secret("Retype your passphrase : ")? {
            return Ok(first);
        }
        say("Passphrases do not match\n")?;
    }
    Err(Failure::new("the passphrases did not match three times"))
}

/// A number that is less than `count`.
pub fn number(question: &str, count: usize) -> Result<usize, Failure> {
    let answer = line(question)?;
    let number = answer.trim().parse::<usize>().ok().filter(|number| *number < count);
    number.ok_or_else(|| {
        Failure::new(format!("'{}' is no number from 0 to {}", answer.trim(), count.saturating_sub(1)))
    })
}

/// Yes or no, where anything but yes means no.
pub fn yes(question: &str) -> Result<bool, Failure> {
    Ok(matches!(line(question)?.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Failure::because("cannot write to standard output", &e))
}

fn read_line() -> Result<String, Failure> {
    const LIMIT: u64 = 64 << 10;
    let mut text = String::new();
    let read = io::stdin().lock().take(LIMIT).read_line(&mut text);
    read.map_err(|e| Failure::because("cannot read the answer", &e))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
