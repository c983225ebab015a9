/*
 * A tmpfs that starts with what was at its place ("tmpcopyup").
 */
#pragma once

#include "base/err.h"

/* Copies all below the directory from_fd (O_PATH) into to_fd: directories, files, links, with modes, owners and times. Devices are left out. */
int copy_up(int from_fd, int to_fd, struct err *err) _must_check_;
