"""The parts of the network: backbone, pixel decoder, transformer decoder."""
