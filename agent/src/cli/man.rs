//! `wayside man`: one man page from the definitions of all commands.

use std::io::{self, Write};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::Cli;

/// The page, in roff.
///
/// # Errors
/// None: memory takes all. clap's writer has them.
pub(super) fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let out = &mut page;
    let mut wayside = Cli::command();
    wayside.build();
    let man = Man::new(wayside.clone());
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    writeln!(out, ".SH COMMANDS")?;
    commands(&wayside, out)?;
    out.extend_from_slice(REST.as_bytes());
    Ok(page)
}

/// Each command that does something, with its options.
fn commands(command: &Command, out: &mut dyn Write) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        if command.has_subcommands() {
            commands(command, out)?;
            continue;
        }
        writeln!(out, ".SS {}", command.get_bin_name().unwrap_or_default())?;
        let man = Man::new(command.clone());
        for section in
            [Man::render_synopsis_section, Man::render_description_section, Man::render_options_section]
        {
            let mut text = Vec::new();
            section(&man, &mut text)?;
            // A section of its own would end the command's.
            let text = String::from_utf8_lossy(&text);
            for line in text.lines().filter(|line| !line.starts_with(".SH ")) {
                writeln!(out, "{line}")?;
            }
            writeln!(out, ".PP")?;
        }
    }
    Ok(())
}

/// What the commands do not define.
const REST: &str = "\
.SH EXIT STATUS
0 done, 1 failed, 2 wrong arguments or configuration.
.SH ENVIRONMENT
WAYSIDE__SECTION__KEY sets section.key of the configuration over the file.
.SH FILES
/etc/wayside/wayside.toml, the configuration; /var/lib/wayside, the local log.
";

#[cfg(test)]
mod tests {
    #[test]
    fn the_man_page_has_every_command_with_its_options() {
        let page = String::from_utf8(super::page().expect("memory takes all")).expect("UTF-8");
        for text in [".SS wayside run", ".SS wayside log inspect", ".SS wayside config schema", "SIGTERM"] {
            assert!(page.contains(text), "no {text:?} in\n{page}");
        }
    }
}
