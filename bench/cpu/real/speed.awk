# speed.awk: prints the statements of the database row: inserts with and without an index, look-ups, joins, changes, sorting.
function random(limit) { seed = (seed * 1103515245 + 12345) % 2147483648; return int(seed / 65536) % limit }
BEGIN {
        seed = 42
        split("ash birch cedar elm fir hazel larch maple oak pine rowan yew", tree, " ")
        print "CREATE TABLE a(id INTEGER PRIMARY KEY, number INTEGER, name TEXT);"
        print "CREATE TABLE b(id INTEGER PRIMARY KEY, a_id INTEGER, value REAL);"
        print "CREATE INDEX b_a ON b(a_id);"
        print "BEGIN;"
        for (n = 0; n < 1500; n++)
                printf "INSERT INTO a VALUES(%d, %d, '%s %s %d');\n", n, random(10000), tree[random(12) + 1], tree[random(12) + 1], n
        for (n = 0; n < 1500; n++) printf "INSERT INTO b VALUES(%d, %d, %d.%d);\n", n, random(1500), random(100), random(100)
        print "COMMIT;"
        for (n = 0; n < 150; n++)
                printf "SELECT count(*), avg(number) FROM a WHERE number BETWEEN %d AND %d AND name LIKE '%%%s%%';\n", n * 50, n * 50 + 900, tree[n % 12 + 1]
        for (n = 0; n < 300; n++) printf "SELECT a.name, b.value FROM a JOIN b ON b.a_id = a.id WHERE a.id = %d ORDER BY b.value;\n", random(1500)
        print "CREATE INDEX a_number ON a(number);"
        for (n = 0; n < 300; n++) printf "UPDATE a SET number = number * 2 + %d WHERE number BETWEEN %d AND %d;\n", n, n * 20, n * 20 + 15
        for (n = 0; n < 100; n++) printf "DELETE FROM b WHERE a_id = %d;\n", random(1500)
        print "SELECT name, sum(value) AS total FROM a JOIN b ON b.a_id = a.id GROUP BY substr(name, 1, 5) ORDER BY total, name;"
        print "WITH RECURSIVE c(n, x) AS (SELECT 1, 1 UNION ALL SELECT n + 1, (x * 75 + 74) % 65537 FROM c WHERE n < 60000) SELECT sum(x), max(x), count(DISTINCT x % 1000) FROM c;"
}
