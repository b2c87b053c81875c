"""Pure decisions: no I/O, no Flask, no requests, no clock of their own."""
