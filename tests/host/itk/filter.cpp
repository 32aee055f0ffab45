// The ITK filter on two images of one process: `filter FIXED MOVING` prints what it finds.
#include <cmath>
#include <iostream>

#include "itkCommand.h"
#include "itkDinoregImageFilter.h"
#include "itkExtractImageFilter.h"
#include "itkImageFileReader.h"
#include "itkImageRegionConstIterator.h"
#include "itkResampleImageFilter.h"

namespace {

using Image = itk::Image<float, 3>;
using Filter = itk::DinoregImageFilter<Image>;

// The mean difference of two images on one grid, as a part of the mean of the second.
double difference(const Image* one, const Image* other) {
  itk::ImageRegionConstIterator<Image> a(one, one->GetLargestPossibleRegion());
  itk::ImageRegionConstIterator<Image> b(other, other->GetLargestPossibleRegion());
  double sum = 0, whole = 0;
  for (; !a.IsAtEnd(); ++a, ++b) {
    sum += std::abs(a.Get() - b.Get());
    whole += std::abs(b.Get());
  }
  return sum / whole;
}

Image::Pointer resampled(Filter* filter, const Image* moving) {
  auto resample = itk::ResampleImageFilter<Image, Image, double, float>::New();
  resample->SetInput(moving);
  resample->SetTransform(filter->GetTransform());
  resample->SetReferenceImage(filter->GetWarpedImage());
  resample->UseReferenceImageOn();
  resample->Update();
  return resample->GetOutput();
}

class Abort : public itk::Command {
 public:
  using Self = Abort;
  using Pointer = itk::SmartPointer<Self>;
  itkNewMacro(Self);
  void Execute(itk::Object* caller, const itk::EventObject&) override {
    ++calls;
    static_cast<itk::ProcessObject*>(caller)->AbortGenerateDataOn();
  }
  void Execute(const itk::Object*, const itk::EventObject&) override {}
  int calls = 0;
};

}  // namespace

int main(int, char** arguments) try {
  const auto fixed = itk::ReadImage<Image>(arguments[1]);
  const auto moving = itk::ReadImage<Image>(arguments[2]);
  auto filter = Filter::New();
  filter->SetOptions("threads = 2\niterations = [30]");
  filter->SetFixedImage(fixed);
  filter->SetMovingImage(moving);
  filter->Update();
  std::cout << "resampled: " << difference(resampled(filter, moving), filter->GetWarpedImage())
            << "\n";

  // The fixed image as the moving one: the displacement becomes small.
  filter->SetMovingImage(fixed);
  filter->Update();
  std::cout << "itself: " << difference(filter->GetWarpedImage(), fixed) << "\n";
  const auto before = filter->GetDisplacementField()->GetUpdateMTime();
  filter->Update();
  std::cout << "kept: " << (filter->GetDisplacementField()->GetUpdateMTime() == before) << "\n";

  // A part of the fixed image, whose first index is not 0.
  auto extract = itk::ExtractImageFilter<Image, Image>::New();
  auto region = fixed->GetLargestPossibleRegion();
  region.ShrinkByRadius(2);
  extract->SetInput(fixed);
  extract->SetExtractionRegion(region);
  filter->SetFixedImage(extract->GetOutput());
  filter->SetMovingImage(moving);
  filter->Update();
  std::cout << "part: " << difference(resampled(filter, moving), filter->GetWarpedImage()) << " "
            << (filter->GetWarpedImage()->GetLargestPossibleRegion() == region) << "\n";

  auto abort = Abort::New();
  const auto tag = filter->AddObserver(itk::ProgressEvent(), abort);
  filter->SetFixedImage(fixed);
  try {
    filter->Update();
    std::cout << "not aborted\n";
  } catch (const itk::ProcessAborted&) {
    std::cout << "aborted: " << abort->calls << "\n";
  }
  filter->RemoveObserver(tag);
  filter->Update();
  std::cout << "then: " << difference(resampled(filter, moving), filter->GetWarpedImage()) << "\n";

  filter->SetOptions("smoothnes = 1");
  try {
    filter->Update();
    std::cout << "no error\n";
  } catch (const itk::ExceptionObject& error) {
    std::cout << "error: " << error.GetDescription() << "\n";
  }
  return 0;
} catch (const itk::ExceptionObject& error) {
  std::cout << error << "\n";
  return 1;
}
