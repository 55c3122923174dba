// Package crash kills the daemon with SIGKILL at every failpoint that a journey passes, starts it
// again, and wants everything to be whole: the store, drivers, directories and kernel agree, the
// journey succeeds, nothing is left.
package crash
