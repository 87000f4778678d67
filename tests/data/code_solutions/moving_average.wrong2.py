def moving_average(numbers, width):
    return [sum(numbers[i:i - width]) / width for i in range(len(numbers) - width + 1)]
