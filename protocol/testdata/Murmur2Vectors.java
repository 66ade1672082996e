import java.nio.charset.StandardCharsets;
import java.util.*;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.utils.Utils;

/** Prints key (hex), murmur2, and the partition in 1, 3, 4, 7, 12 and 1000 partitions, as Kafka's own client computes them. */
public class Murmur2Vectors {
    public static void main(String[] args) {
        List<byte[]> keys = new ArrayList<>();
        for (String s : new String[] {"", "0", "21", "foobar", "a-little-bit-long-string", "a-little-bit-longer-string",
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", "abc", "room-204", "bus/0018/01029", "d41d8cd98f00b204"})
            keys.add(s.getBytes(StandardCharsets.UTF_8));
        keys.add(new byte[] {(byte) 0xff, (byte) 0x80, 0, 1});
        Random random = new Random(20);
        for (int length = 0; length <= 40; length++) {
            byte[] key = new byte[length];
            random.nextBytes(key);
            keys.add(key);
        }
        for (byte[] key : keys) {
            StringBuilder line = new StringBuilder(HexFormat.of().formatHex(key)).append('\t').append(Utils.murmur2(key));
            for (int partitions : new int[] {1, 3, 4, 7, 12, 1000})
                line.append('\t').append(BuiltInPartitioner.partitionForKey(key, partitions));
            System.out.println(line);
        }
    }
}
