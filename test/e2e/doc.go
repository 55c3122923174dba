// Package e2e drives the real programs, end to end: one file a journey.
package e2e
