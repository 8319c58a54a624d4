//! `nsparse export`: the packages that ML Commons takes.

use nsparse_exporter::export;

use crate::ExitStatus;
use crate::cli::ExportArgs;
use crate::printer::Printer;

pub(crate) fn run(args: &ExportArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let report = export(&args.model, &args.out, &args.name, &args.package_version)?;
    let manifest = &report.manifest;
    printer.text(format!("`{}` {} in {}:", manifest.name, manifest.version, args.out.display()));
    for (what, part) in [("document encoder", &manifest.document), ("query tokenizer", &manifest.query)] {
        printer.text(format!(
            "  {what}: {} ({} bytes, sha256 {}), register body {}",
            part.zip, part.bytes, part.sha256, part.register
        ));
    }
    printer.text(format!("\nNext: nsparse deploy {} --url URL", args.out.display()));
    printer.json(manifest)?;
    Ok(ExitStatus::Success)
}
