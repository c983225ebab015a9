/* virta-oci by itself: small, static, and with nothing that the runtime does not need. */
#include <fcntl.h>

#include "cli/oci.h"

int main(int argc, char **argv)
{
        /* With a standard descriptor closed, the next file opened would be taken for it. */
        for (int fd = 0; fd < 3; fd++)
                if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_WRONLY : O_RDONLY) != fd)
                        return 1;
        return oci_main(argc, argv);
}
