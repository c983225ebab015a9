# table.awk ROWS RESULTS: the table of bench/cpu/run. ROWS: name|group|vCPUs|command|asked; RESULTS: ENGINE ROW SECONDS CHECKSUM,
# a line for each time a row ran. Prints the rows, a summary by group, and what is wrong; exits with 1 when something is. With
# -v json=FILE the same figures go there. Times are minima; QEMU's is the better of its two processor models.

function number(x) { return x == "" ? "–" : sprintf(x < 0.1 ? "%.4f" : x < 10 ? "%.3f" : "%.2f", x) }
function times(x) { return x == "" ? "–" : sprintf(x < 10 ? "%.2f" : "%.1f", x) }
function wrong(text) { problems[++problem_count] = text }
function mean_add(of, x) { log_sum[of] += log(x); log_count[of]++ }
function mean(of) { return log_count[of] ? exp(log_sum[of] / log_count[of]) : "" }

FILENAME == ARGV[1] {
        split($0, f, "|")
        names[++count] = f[1]; group[f[1]] = f[2]; cpus[f[1]] = f[3]; asked[f[1]] = f[5]
        next
}
$2 == "boot" && !("boot" in group) {
        for (n = count; n > 0; n--) names[n + 1] = names[n]
        count++
        names[1] = "boot"; group["boot"] = "boot"; asked["boot"] = "2.5"
}
{
        engine = $1 == "qemu-plain" ? "qemu" : $1
        seen[engine] = 1
        if ($3 == "failed") { failed[$2] = failed[$2] " " $1; next }
        if ($3 == "unsupported") next
        if (!($2 in group)) { wrong("an unknown row came from " $1 ": " $0); next }
        if (!((engine, $2) in best) || $3 < best[engine, $2]) best[engine, $2] = $3
        if ($4 == "-") next
        if (!($2 in sum)) { sum[$2] = $4; sum_of[$2] = $1 }
        else if (sum[$2] != $4 && !((2, $2) in sum)) {
                sum[2, $2] = 1
                wrong("CHECKSUM of " $2 " differs: " sum_of[$2] " " sum[$2] ", " $1 " " $4)
        }
}
END {
        if (seen["qemu"]) {
                print "| work | native s | QEMU TCG s | Virta s | Virta faster than TCG (×) | × native | asked |"
                print "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
        } else {
                print "| work | native s | Virta s | × native |"
                print "| --- | ---: | ---: | ---: |"
        }
        for (n = 1; n <= count; n++) {
                r = names[n]
                native = best["native", r]; qemu = best["qemu", r]; virta = best["virta", r]
                faster = qemu != "" && virta > 0 ? qemu / virta : ""
                slower = native > 0 && virta != "" ? virta / native : ""
                want = asked[r] == "-" ? "" : asked[r]
                verdict = want == "" ? "" : want (faster == "" ? "" : faster + 0 >= want + 0 ? " ok" : " **no**")
                if (r in failed) { verdict = verdict " FAILED"; wrong(r " failed in:" failed[r]) }
                line = "| " r " | " number(native) " | "
                if (seen["qemu"])
                        line = line number(qemu) " | " number(virta) " | " times(faster) " | " times(slower) " | " verdict " |"
                else
                        line = line number(virta) " | " times(slower) " |" ((r in failed) ? " FAILED" : "")
                print line
                if (!(group[r] in group_asked)) { groups[++group_count] = group[r]; group_asked[group[r]] = want }
                if (group[r] != "parallel") {
                        if (faster != "") { mean_add("faster " group[r], faster); mean_add("faster", faster) }
                        if (slower != "") { mean_add("slower " group[r], slower); mean_add("slower", slower) }
                        if (native > 0 && qemu != "") mean_add("tcg", qemu / native)
                }
                if (json != "") {
                        line = sprintf("    { \"name\": \"%s\", \"group\": \"%s\"", r, group[r])
                        if (native != "") line = line sprintf(", \"native_s\": %s", native)
                        if (qemu != "") line = line sprintf(", \"qemu_s\": %s", qemu)
                        if (virta != "") line = line sprintf(", \"virta_s\": %s", virta)
                        if (faster != "") line = line sprintf(", \"faster_than_tcg\": %.4f", faster)
                        if (slower != "") line = line sprintf(", \"times_native\": %.4f", slower)
                        if (want != "") line = line sprintf(", \"asked\": %s", want)
                        json_rows = json_rows (json_rows == "" ? "" : ",\n") line (r in failed ? ", \"failed\": true" : "") " }"
                }
        }
        print ""
        if (seen["qemu"] && log_count["faster"] > 1) {
                print "| group (geometric means) | Virta faster than TCG (×) | × native | asked |"
                print "| --- | ---: | ---: | --- |"
                for (n = 1; n <= group_count; n++) {
                        g = groups[n]
                        m = mean("faster " g)
                        if (m == "") continue
                        want = group_asked[g]
                        verdict = want == "" ? "" : want (m + 0 >= want + 0 ? " ok" : " **no**")
                        printf "| %s | %s | %s | %s |\n", g, times(m), times(mean("slower " g)), verdict
                }
                printf "| **all** | **%s** | **%s** | |\n\n", times(mean("faster")), times(mean("slower"))
        } else if (log_count["slower"] > 1)
                printf "All: %s × native (geometric mean).\n\n", times(mean("slower"))
        if (log_count["tcg"]) printf "QEMU TCG itself: %s × native (geometric mean of the same rows).\n", times(mean("tcg"))
        split("native qemu virta", engines, " ")
        split("the host|QEMU TCG|Virta", engine_names, "|")
        for (n = 1; n <= 3; n++) {
                e = engines[n]
                if (cpu_time || !(best[e, "parallel-2"] > 0)) continue
                gain = 2 * best[e, "parallel-1"] / best[e, "parallel-2"]
                printf "Two processors do %.2f × the work of one: %s%s.\n", gain, engine_names[n], \
                        e == "virta" ? " (asked: 1.8)" : ""
        }
        for (n = 1; n <= problem_count; n++) print "**" problems[n] "**"
        if (json != "") {
                printf "{\n  \"rows\": [\n%s\n  ],\n", json_rows >json
                printf "  \"faster_than_tcg\": %s, \"times_native\": %s,", (m = mean("faster")) == "" ? "null" : m, \
                        (m = mean("slower")) == "" ? "null" : m >json
                printf " \"problems\": %d\n}\n", problem_count >json
        }
        exit problem_count > 0
}
