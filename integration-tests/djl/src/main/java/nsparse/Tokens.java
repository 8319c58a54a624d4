package nsparse;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import java.io.BufferedWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * Tokenizes texts with a {@code tokenizer.json} as ML Commons does (padding asked for, everything else from the
 * file), and says what string each id becomes in a document vector.
 *
 * <p>Arguments: tokenizer, input (jsonl of {@code {"text":"..."}}), output (one line {@code ["...",...]}: the
 * string of every id, then one line {@code [...]} of ids a text), vocabulary size.
 */
public final class Tokens {
    private Tokens() {}

    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 4) {
            throw new IllegalArgumentException("usage: Tokens TOKENIZER INPUT OUTPUT VOCABULARY");
        }
        Gson gson = new GsonBuilder().disableHtmlEscaping().create();
        int vocabulary = Integer.parseInt(arguments[3]);
        try (HuggingFaceTokenizer tokenizer =
                        HuggingFaceTokenizer.builder()
                                .optPadding(true)
                                .optTokenizerPath(Path.of(arguments[0]))
                                .build();
                BufferedWriter out = Files.newBufferedWriter(Path.of(arguments[2]), StandardCharsets.UTF_8)) {
            String[] strings = new String[vocabulary];
            for (int id = 0; id < vocabulary; id++) {
                strings[id] = tokenizer.decode(new long[] {id}, true);
            }
            out.write(gson.toJson(strings) + "\n");
            for (String line : Files.readAllLines(Path.of(arguments[1]), StandardCharsets.UTF_8)) {
                String text = gson.fromJson(line, Text.class).text;
                out.write(gson.toJson(tokenizer.encode(text).getIds()) + "\n");
            }
        }
    }

    /** What one line of the input holds. */
    private static final class Text {
        private String text;
    }
}
