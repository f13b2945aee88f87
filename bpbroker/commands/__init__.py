"""The commands of ``bpbroker``, a module for each thing that an operator looks after."""
