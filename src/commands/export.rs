//! `nsparse export`: the packages that ML Commons takes.

use nsparse_exporter::{ModelFormat, export_as};

use crate::ExitStatus;
use crate::cli::{ExportArgs, GraphFormat};
use crate::printer::Printer;

pub(crate) fn run(args: &ExportArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let format = match args.format {
        GraphFormat::Torchscript => ModelFormat::TorchScript,
        GraphFormat::Onnx => ModelFormat::Onnx,
    };
    let report = export_as(&args.model, &args.out, &args.name, &args.package_version, format)?;
    let manifest = &report.manifest;
    printer.text(format!("`{}` {} in {}:", manifest.name, manifest.version, args.out.display()));
    for (what, part) in [("document encoder", &manifest.document), ("query tokenizer", &manifest.query)] {
        printer.text(format!(
            "  {what}: {} ({} bytes, sha256 {}), register body {}",
            part.zip, part.bytes, part.sha256, part.register
        ));
    }
    if let Some(onnx) = &manifest.onnx {
        printer.text(format!("  for onnxruntime itself: {} ({} bytes), tokenizer.json", onnx.file, onnx.bytes));
    }
    if let Some(segments) = manifest.segments.filter(|s| s.max > 1) {
        printer.note(format!(
            "nsparse reads a long document in up to {} windows; this graph, as a cluster runs it, reads the first {} \
             tokens alone. With `nsparse ingest` (deploy: --side query or client) documents are read whole",
            segments.max, manifest.max_tokens
        ));
    }
    printer.text(format!("\nNext: nsparse deploy {} --url URL", args.out.display()));
    printer.json(manifest)?;
    Ok(ExitStatus::Success)
}
