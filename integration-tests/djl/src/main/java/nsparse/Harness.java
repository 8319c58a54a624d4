package nsparse;

import ai.djl.Device;
import ai.djl.Model;
import ai.djl.inference.Predictor;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.translate.NoopTranslator;
import com.google.gson.Gson;
import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * Runs a TorchScript archive over token ids, fed as ML Commons feeds it: two int64 arrays named
 * {@code input1.input_ids} and {@code input1.attention_mask}, which DJL groups into the module's one
 * {@code Dict[str, Tensor]}; the answer is the one float32 tensor called {@code output}.
 *
 * <p>Arguments: archive, input (jsonl of {@code {"input_ids":[...]}}), output (jsonl of
 * {@code {"ids":[...],"weights":[...]}}, every entry that is not 0), batch size, padding id. With a batch
 * size of 1 a text goes in as {@code [1, L]}, as ML Commons sends it; above that, texts are padded.
 */
public final class Harness {
    private Harness() {}

    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 5) {
            throw new IllegalArgumentException("usage: Harness ARCHIVE INPUT OUTPUT BATCH PAD_ID");
        }
        Path archive = Path.of(arguments[0]).toAbsolutePath();
        List<long[]> texts = readTexts(Path.of(arguments[1]));
        int batch = Integer.parseInt(arguments[3]);
        long pad = Long.parseLong(arguments[4]);
        String name = archive.getFileName().toString().replaceFirst("\\.pt$", "");
        try (Model model = Model.newInstance(name, Device.cpu(), "PyTorch")) {
            model.load(archive.getParent(), name);
            try (Predictor<NDList, NDList> predictor = model.newPredictor(new NoopTranslator(null));
                    NDManager manager = model.getNDManager().newSubManager();
                    BufferedWriter out = Files.newBufferedWriter(Path.of(arguments[2]), StandardCharsets.UTF_8)) {
                for (int start = 0; start < texts.size(); start += batch) {
                    List<long[]> part = texts.subList(start, Math.min(texts.size(), start + batch));
                    predict(predictor, manager, part, pad, out);
                }
            }
        }
    }

    private static List<long[]> readTexts(Path path) throws IOException {
        Gson gson = new Gson();
        List<long[]> texts = new ArrayList<>();
        for (String line : Files.readAllLines(path, StandardCharsets.UTF_8)) {
            texts.add(gson.fromJson(line, Ids.class).input_ids);
        }
        return texts;
    }

    /** What one line of the input holds. */
    private static final class Ids {
        private long[] input_ids;
    }

    private static void predict(
            Predictor<NDList, NDList> predictor,
            NDManager manager,
            List<long[]> texts,
            long pad,
            BufferedWriter out)
            throws Exception {
        int length = texts.stream().mapToInt(t -> t.length).max().orElse(0);
        long[] ids = new long[texts.size() * length];
        long[] mask = new long[texts.size() * length];
        for (int row = 0; row < texts.size(); row++) {
            long[] text = texts.get(row);
            for (int i = 0; i < length; i++) {
                ids[row * length + i] = i < text.length ? text[i] : pad;
                mask[row * length + i] = i < text.length ? 1 : 0;
            }
        }
        Shape shape = new Shape(texts.size(), length);
        try (NDManager scope = manager.newSubManager()) {
            NDArray idArray = scope.create(ids, shape);
            idArray.setName("input1.input_ids");
            NDArray maskArray = scope.create(mask, shape);
            maskArray.setName("input1.attention_mask");
            NDList answer = predictor.predict(new NDList(idArray, maskArray));
            answer.attach(scope);
            // ML Commons processes every tensor of the answer, so there has to be exactly one.
            if (answer.size() != 1 || !"output".equals(answer.get(0).getName())) {
                throw new IllegalStateException("expected one tensor called output, got " + answer);
            }
            NDArray output = answer.get(0);
            if (output.getDataType() != DataType.FLOAT32
                    || output.getShape().dimension() != 2
                    || output.getShape().get(0) != texts.size()) {
                throw new IllegalStateException("expected float32 [B, V], got " + output);
            }
            int vocabulary = (int) output.getShape().get(1);
            float[] values = output.toFloatArray();
            for (int row = 0; row < texts.size(); row++) {
                writeRow(values, row * vocabulary, vocabulary, out);
            }
        }
    }

    private static void writeRow(float[] values, int start, int vocabulary, BufferedWriter out) throws IOException {
        StringBuilder ids = new StringBuilder();
        StringBuilder weights = new StringBuilder();
        for (int id = 0; id < vocabulary; id++) {
            float weight = values[start + id];
            // As SparseEncodingTranslator: whatever is not exactly 0, so that negatives and NaN would show.
            if (weight != 0) {
                ids.append(ids.length() == 0 ? "" : ",").append(id);
                weights.append(weights.length() == 0 ? "" : ",").append(weight);
            }
        }
        out.write("{\"ids\":[" + ids + "],\"weights\":[" + weights + "]}\n");
    }
}
