/*
 * Runs a fuzz target over files instead of under libFuzzer: every file of the folders (or the files) named, and the empty input.
 * So each corpus, with the input of every bug found, is a test with any compiler.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

static unsigned inputs;

static int replay(const char *path)
{
        FILE *file = fopen(path, "rbe");
        struct stat st;
        uint8_t *bytes;
        size_t size;

        if (!file || fstat(fileno(file), &st) < 0) {
                perror(path);
                return -1;
        }
        /* A buffer of exactly its size: ASan then sees every byte read past it. */
        bytes = malloc((size_t)st.st_size ? (size_t)st.st_size : 1);
        size = bytes ? fread(bytes, 1, (size_t)st.st_size, file) : 0;
        fclose(file);
        printf("%s, %zu bytes\n", path, size);
        fflush(stdout);
        LLVMFuzzerTestOneInput(bytes, size);
        free(bytes);
        inputs++;
        return 0;
}

static int replay_folder(const char *path)
{
        DIR *dir = opendir(path);
        struct dirent *entry;
        char name[4096];
        int r = 0;

        if (!dir)
                return replay(path);
        while ((entry = readdir(dir))) {
                if (entry->d_name[0] == '.')
                        continue;
                snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
                r |= replay(name);
        }
        closedir(dir);
        return r;
}

int main(int argc, char **argv)
{
        uint8_t *nothing = calloc(1, 1); /* on the heap, so that ASan guards it */
        int r = 0;

        LLVMFuzzerTestOneInput(nothing, 0);
        free(nothing);
        for (int i = 1; i < argc; i++)
                r |= replay_folder(argv[i]);
        printf("%u inputs\n", inputs);
        return r ? 1 : 0;
}
